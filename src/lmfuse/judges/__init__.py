"""Judges of answers: each gives the answers of several models to one question a number, and keeps what it was given and what it said."""
