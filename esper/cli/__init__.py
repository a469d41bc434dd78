"""The command ``esper``: one module a verb. What is slow to import is imported where it is used."""
