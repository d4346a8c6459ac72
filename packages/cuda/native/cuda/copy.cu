// Copies: pinned host memory to the device, and many pieces between two allocations by one kernel.
#include <algorithm>
#include <vector>

#include "buffer.h"
#include "device-memory.h"
#include "stream.h"

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

std::vector<ckpt_copy_piece> make_tiles(const DeviceMemory& dst, const DeviceMemory& src, const ckpt_copy_piece* pieces, uint32_t count) {
  std::vector<ckpt_copy_piece> tiles;
  for (uint32_t i = 0; i < count; i++) {
    const ckpt_copy_piece& piece = pieces[i];
    require_range("copy destination", piece.dst_offset, piece.bytes, dst.bytes());
    require_range("copy source", piece.src_offset, piece.bytes, src.bytes());
    for (uint64_t done = 0; done < piece.bytes; done += kTileBytes) {
      tiles.push_back({piece.dst_offset + done, piece.src_offset + done, std::min(kTileBytes, piece.bytes - done)});
    }
  }
  return tiles;
}

// The table of tiles lives on the device in stream order; a copy from pageable memory has left it when the call returns.
void copy_pieces(Stream& stream, const DeviceMemory& dst, const DeviceMemory& src, const std::vector<ckpt_copy_piece>& tiles) {
  const size_t table_bytes = tiles.size() * sizeof(ckpt_copy_piece);
  void* table = nullptr;
  check_cuda(cudaMallocAsync(&table, table_bytes, stream.raw()), "cudaMallocAsync");
  cudaError_t error = cudaMemcpyAsync(table, tiles.data(), table_bytes, cudaMemcpyHostToDevice, stream.raw());
  if (error == cudaSuccess) {
    const unsigned blocks = static_cast<unsigned>(std::min<uint64_t>(tiles.size(), kMaxBlocks));
    copy_tiles<<<blocks, kThreads, 0, stream.raw()>>>(dst.at(0), src.at(0), static_cast<ckpt_copy_piece*>(table), tiles.size());
    error = cudaGetLastError();
  }
  cudaFreeAsync(table, stream.raw());
  check_cuda(error, "copying between device allocations");
}

}  // namespace
}  // namespace ckpt

using namespace ckpt;

int32_t ckpt_copy_device(uint32_t stream, uint32_t dst_memory, uint32_t src_memory, const ckpt_copy_piece* pieces, uint32_t count) {
  return guard([&] {
    const auto queue = find_object<Stream>(stream);
    const auto dst = find_object<DeviceMemory>(dst_memory);
    const auto src = find_object<DeviceMemory>(src_memory);
    if (count == 0) return;
    require(pieces, "pieces");
    if (dst->device() != queue->device() || src->device() != queue->device()) {
      fail(CKPT_ERR_INVALID, "a copy on device %u between memory of devices %u and %u", queue->device(), dst->device(), src->device());
    }
    const auto tiles = make_tiles(*dst, *src, pieces, count);
    use_device(queue->device());
    if (!tiles.empty()) copy_pieces(*queue, *dst, *src, tiles);
  });
}
