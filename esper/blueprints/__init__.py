"""Recipes of seeds: the IR as data, the library that ships, and building modules from it."""
