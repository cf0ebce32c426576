"""Methods of continual learning, a file each: what is added to a step, and what a finished task leaves behind."""
