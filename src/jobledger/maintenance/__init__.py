"""The chores of repair: each is made of guarded statements, so that any number of processes may run them at once."""
