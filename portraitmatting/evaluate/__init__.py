"""Score mattes against a benchmark folder's ground truth, ours and those of other tools alike:
`portraitmatting evaluate`."""
