"""What is wanted and what will be done, as plain data that needs no torch: filters, recipes, edits, plans."""
