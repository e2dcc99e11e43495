"""Exercises of chapter 07, with the mistakes that learners make."""

EXERCISES = ()
