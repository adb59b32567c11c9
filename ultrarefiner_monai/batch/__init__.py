"""A whole archive: several processes, each with its own copy of the model, and a results.csv."""
