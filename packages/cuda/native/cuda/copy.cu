// Many pieces between two allocations of one device, by one kernel.
#include "copy.h"

#include <algorithm>

namespace ckpt {
namespace {

constexpr uint64_t kTileBytes = 256 << 10;
constexpr unsigned kThreads = 512;
constexpr uint64_t kMaxBlocks = 1 << 16;

template <class Word>
__device__ void copy_words(uint8_t* dst, const uint8_t* src, uint64_t bytes) {
  const uint64_t words = bytes / sizeof(Word);
  for (uint64_t i = threadIdx.x; i < words; i += blockDim.x) {
    reinterpret_cast<Word*>(dst)[i] = reinterpret_cast<const Word*>(src)[i];
  }
  for (uint64_t i = words * sizeof(Word) + threadIdx.x; i < bytes; i += blockDim.x) dst[i] = src[i];
}

// One block a tile; a tile's addresses decide how wide its loads may be.
__global__ void copy_tiles(uint8_t* dst_base, const uint8_t* src_base, const ckpt_copy_piece* tiles, uint64_t count) {
  for (uint64_t t = blockIdx.x; t < count; t += gridDim.x) {
    const ckpt_copy_piece tile = tiles[t];
    uint8_t* dst = dst_base + tile.dst_offset;
    const uint8_t* src = src_base + tile.src_offset;
    const uint64_t low_bits = reinterpret_cast<uint64_t>(dst) | reinterpret_cast<uint64_t>(src);
    if (low_bits % sizeof(uint4) == 0) {
      copy_words<uint4>(dst, src, tile.bytes);
    } else if (low_bits % sizeof(uint32_t) == 0) {
      copy_words<uint32_t>(dst, src, tile.bytes);
    } else {
      copy_words<uint8_t>(dst, src, tile.bytes);
    }
  }
}

std::vector<ckpt_copy_piece> make_tiles(const std::vector<ckpt_copy_piece>& pieces) {
  std::vector<ckpt_copy_piece> tiles;
  for (const ckpt_copy_piece& piece : pieces) {
    for (uint64_t done = 0; done < piece.bytes; done += kTileBytes) {
      tiles.push_back({piece.dst_offset + done, piece.src_offset + done, std::min(kTileBytes, piece.bytes - done)});
    }
  }
  return tiles;
}

}  // namespace

// The table of tiles lives on the device in stream order; a copy from pageable memory has read it
// when the call returns.
void enqueue_pieces(cudaStream_t stream, uint8_t* to, const uint8_t* from,
                    const std::vector<ckpt_copy_piece>& pieces) {
  const auto tiles = make_tiles(pieces);
  if (tiles.empty()) return;
  const size_t table_bytes = tiles.size() * sizeof(ckpt_copy_piece);
  void* table = nullptr;
  check_cuda(cudaMallocAsync(&table, table_bytes, stream), "cudaMallocAsync");
  cudaError_t error =
      cudaMemcpyAsync(table, tiles.data(), table_bytes, cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) {
    const unsigned blocks = static_cast<unsigned>(std::min<uint64_t>(tiles.size(), kMaxBlocks));
    copy_tiles<<<blocks, kThreads, 0, stream>>>(to, from, static_cast<ckpt_copy_piece*>(table),
                                                tiles.size());
    error = cudaGetLastError();
  }
  cudaFreeAsync(table, stream);
  check_cuda(error, "copying between device allocations");
}

}  // namespace ckpt
