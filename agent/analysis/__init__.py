"""What a trained policy is like inside: order of its trajectories, representations, fixed points."""
