"""Philox4x32-10 (Salmon et al. 2011): four random words from a counter of four words and a key of two."""

_WORD = 0xFFFFFFFF


def philox(counter, key):
    """``counter``: four arrays of int64, of NumPy or PyTorch, ``key``: two words, whole numbers or such arrays.

    Products of two words pass 2^63 and wrap around, which leaves their 64 bits as they should be.
    """
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        low, high = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = ((high >> 32) & _WORD) ^ b ^ k0, high & _WORD, ((low >> 32) & _WORD) ^ d ^ k1, low & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return a, b, c, d
