"""`fleetlm doctor`: `gather` collects facts about a node and its peers, `checks` judges them."""
