#include "rows.h"

#include <algorithm>

namespace ckpt {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kLoads = 4;  // of a thread, on their way at the same time
constexpr unsigned kWordsOfBlock = kThreads * kLoads;
// A kernel's arguments have room for 4 KiB.
constexpr unsigned kPiecesMax = 64;
// Keeps the number of a word in 32 bits, and that of blocks far below what a grid may have.
constexpr uint64_t kPieceBytesMax = 1u << 30;

// Where the blocks of a piece end, with the piece.
struct Job {
  HostRows rows[kPiecesMax];
  unsigned ends[kPiecesMax];
  unsigned count;
};
static_assert(sizeof(Job) <= 4096 - 16);

template <class Word>
__global__ void __launch_bounds__(kThreads) copy_rows(const __grid_constant__ Job job) {
  unsigned low = 0, high = job.count - 1;
  while (low < high) {
    const unsigned middle = (low + high) / 2;
    if (blockIdx.x < job.ends[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  const HostRows& rows = job.rows[low];
  const unsigned first = low == 0 ? 0 : job.ends[low - 1];
  const unsigned words_of_row = static_cast<unsigned>(rows.width / sizeof(Word));
  const unsigned words = static_cast<unsigned>(rows.height) * words_of_row;
  const unsigned begin = (blockIdx.x - first) * kWordsOfBlock + threadIdx.x;
  Word values[kLoads];
#pragma unroll
  for (unsigned i = 0; i < kLoads; i++) {
    const unsigned word = begin + i * kThreads;
    if (word >= words) break;
    const uint8_t* row = rows.from + word / words_of_row * rows.from_pitch;
    values[i] = reinterpret_cast<const Word*>(row)[word % words_of_row];
  }
#pragma unroll
  for (unsigned i = 0; i < kLoads; i++) {
    const unsigned word = begin + i * kThreads;
    if (word >= words) break;
    uint8_t* row = rows.to + word / words_of_row * rows.to_pitch;
    reinterpret_cast<Word*>(row)[word % words_of_row] = values[i];
  }
}

// The largest word of which all rows, at both sides, begin at a multiple and have a number.
size_t word_bytes(const HostRows& rows) {
  const uint64_t bits = reinterpret_cast<uint64_t>(rows.to) | reinterpret_cast<uint64_t>(rows.from) |
                        rows.to_pitch | rows.from_pitch | rows.width;
  size_t bytes = sizeof(uint4);
  while (bits % bytes != 0) bytes /= 2;
  return bytes;
}

class Launcher {
 public:
  Launcher(cudaStream_t stream, size_t bytes) : stream_(stream), word_bytes_(bytes) {}

  void add(HostRows rows) {
    const uint64_t rows_max = std::max<uint64_t>(1, kPieceBytesMax / rows.width);
    for (uint64_t left = rows.height; left > 0; left -= rows.height) {
      rows.height = std::min(left, rows_max);
      if (job_.count == kPiecesMax) launch();
      const uint64_t words = rows.width / word_bytes_ * rows.height;
      blocks_ += static_cast<unsigned>((words + kWordsOfBlock - 1) / kWordsOfBlock);
      job_.rows[job_.count] = rows;
      job_.ends[job_.count++] = blocks_;
      rows.to += rows.height * rows.to_pitch;
      rows.from += rows.height * rows.from_pitch;
      if (blocks_ > kPieceBytesMax / kWordsOfBlock) launch();
    }
  }

  void launch() {
    if (job_.count == 0) return;
    switch (word_bytes_) {
      case 16: copy_rows<uint4><<<blocks_, kThreads, 0, stream_>>>(job_); break;
      case 8: copy_rows<uint2><<<blocks_, kThreads, 0, stream_>>>(job_); break;
      case 4: copy_rows<uint32_t><<<blocks_, kThreads, 0, stream_>>>(job_); break;
      case 2: copy_rows<uint16_t><<<blocks_, kThreads, 0, stream_>>>(job_); break;
      default: copy_rows<uint8_t><<<blocks_, kThreads, 0, stream_>>>(job_);
    }
    job_.count = blocks_ = 0;
    check_cuda(cudaGetLastError(), "copying rows to the device");
  }

 private:
  cudaStream_t stream_;
  size_t word_bytes_;
  Job job_{};
  unsigned blocks_ = 0;
};

}  // namespace

bool reads_host_memory(uint32_t device) {
  int can = 0;
  const auto attribute = cudaDevAttrCanUseHostPointerForRegisteredMem;
  check_cuda(cudaDeviceGetAttribute(&can, attribute, static_cast<int>(device)),
             "cudaDeviceGetAttribute");
  return can != 0;
}

void enqueue_rows(cudaStream_t stream, const std::vector<HostRows>& pieces) {
  for (const size_t bytes : {16, 8, 4, 2, 1}) {
    Launcher launcher(stream, bytes);
    for (const HostRows& rows : pieces) {
      if (word_bytes(rows) == bytes) launcher.add(rows);
    }
    launcher.launch();
  }
}

}  // namespace ckpt
