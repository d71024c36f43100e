"""Speed, side by side with peers in one run, as ratios with medians. No test looks at it."""
