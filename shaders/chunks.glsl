// How workgroups cut a sum over K.
const uint CHUNKS = 32;

// Blocks of 32, or columns of floats, of a chunk.
uint chunk_of(uint n, uint align)
{
    return (n + CHUNKS * align - 1) / (CHUNKS * align) * align;
}
