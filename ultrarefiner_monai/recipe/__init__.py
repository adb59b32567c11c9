"""A recipe: all steps from data to the file that ships, as one command that can be stopped and gone on with anywhere."""
