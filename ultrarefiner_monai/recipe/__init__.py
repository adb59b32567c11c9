"""A recipe: all steps from data to the shipped file, as one command that can be stopped and resumed anywhere."""
