"""The trainer daemon: takes jobs from a queue and trains each in a process of its own."""
