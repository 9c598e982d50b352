"""Methods that choose among answers by what several judges make of them: scores of J judges for S candidates in, the winner and why out."""
