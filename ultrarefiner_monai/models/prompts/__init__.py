"""From coarse_prob to SAM's prompts, differentiably."""
