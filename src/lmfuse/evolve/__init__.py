"""Methods that breed new models from a population: members and their scores in, the next child out."""
