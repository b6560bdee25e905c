"""What the stages read: item features, co-occurrence counts, histories, several data sets as one."""
