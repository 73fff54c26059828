"""Networks of many families in plain torch, small, with seeded random weights; ``index`` lists them."""
