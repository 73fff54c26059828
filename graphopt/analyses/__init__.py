"""What can be known of a model without running it: shapes, costs, and the values of constants."""
