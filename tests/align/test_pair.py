def test_it():
    from lmfuse.types import Vocabulary

    print(Vocabulary.from_tokens([b"a", b"bc"]))


def test_map():
    import numpy as np

    from lmfuse.types import VocabularyMap

    VocabularyMap.from_single(np.array([0]), 1, "x")
