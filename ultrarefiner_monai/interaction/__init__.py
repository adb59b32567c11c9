"""A user's clicks: checked, mended into the mask and honoured in the result; and a user made of rules."""
