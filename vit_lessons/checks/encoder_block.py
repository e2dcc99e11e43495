"""Exercises of chapter 06, with the mistakes that learners make."""

EXERCISES = ()
