"""Where bytes live, and whether they are intact: local tiers and under stores."""
