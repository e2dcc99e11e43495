"""Exercises of chapter 05, with the mistakes that learners make."""

EXERCISES = ()
