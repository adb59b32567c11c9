"""What MONAI Label calls tasks (infer, train, next sample), and the processes they run in."""
