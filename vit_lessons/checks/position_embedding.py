"""Exercises of chapter 03, with the mistakes that learners make."""

EXERCISES = ()
