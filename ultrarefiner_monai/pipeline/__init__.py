"""One frame in, one proposal out: coarse network, prompts, SAM, clicks, post-processing; and what is kept between
two clicks."""
