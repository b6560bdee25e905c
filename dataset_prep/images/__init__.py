"""Pictures of a data set's items: what is fetched, how politely, and what counts as one."""
