"""What a depth prior is good for elsewhere: spatial questions, robot tasks, running time."""
