"""Exercises of chapter 02, with the mistakes that learners make."""

EXERCISES = ()
