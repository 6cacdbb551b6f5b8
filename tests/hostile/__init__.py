"""Malformed and hostile files, each made from a number, and a harness that reads every one in a process of its own."""
