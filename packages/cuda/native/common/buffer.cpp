#include "buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <vector>

#include "numa.h"
#include "sha256.h"
#include "thread-choice.h"
#include "threads.h"

namespace ckpt {
namespace {

constexpr uint32_t kThreadsMax = 16;
// From here on a mapping has pieces for all threads.
constexpr uint64_t kTryMapBytes = 512ull << 20;
constexpr uint64_t kHashChunkBytes = 1ull << 20;

// Each kind of memory has its own locks in the kernel, so each has its own best number of threads.
ThreadChoice& threads_for(bool shared) {
  static ThreadChoice& anonymous = *new ThreadChoice(kThreadsMax);
  static ThreadChoice& shm = *new ThreadChoice(kThreadsMax);
  return shared ? shm : anonymous;
}

ThreadChoice& threads_for(const File& file) {
  static ThreadChoice& tmpfs = *new ThreadChoice(kThreadsMax, kTryMapBytes);
  static ThreadChoice& disk = *new ThreadChoice(kThreadsMax, kTryMapBytes);
  return file.on_tmpfs() ? tmpfs : disk;
}

}  // namespace

std::shared_ptr<Buffer> Buffer::allocate(uint64_t bytes, uint32_t flags) {
  if (bytes == 0) fail(CKPT_ERR_INVALID, "a buffer of 0 bytes");
  if ((flags & ~static_cast<uint32_t>(CKPT_BUFFER_SHARED)) != 0)
    fail(CKPT_ERR_INVALID, "unknown buffer flags %#x", flags);
  std::shared_ptr<Buffer> buffer(new Buffer);
  if ((flags & CKPT_BUFFER_SHARED) != 0) {
    buffer->bytes_ = bytes;
    require_memory("shared buffer", bytes, available_shared_bytes());
    buffer->shared_.reset(SharedMemory::create(bytes));
    buffer->address_ = static_cast<uint8_t*>(buffer->shared_->address());
  } else {
    buffer->take_anonymous(bytes);
  }
  buffer->populate_and_pin();
  return buffer;
}

std::shared_ptr<Buffer> Buffer::allocate_near(uint64_t bytes, int32_t node, bool* placed) {
  if (bytes == 0) fail(CKPT_ERR_INVALID, "a buffer of 0 bytes");
  std::shared_ptr<Buffer> buffer(new Buffer);
  buffer->take_anonymous(bytes);
  // Of the mapping, not of a thread: any thread may touch the pages, and the first touch decides.
  *placed = prefer_numa_node(buffer->address_, bytes, node);
  buffer->populate_and_pin();
  return buffer;
}

void Buffer::take_anonymous(uint64_t bytes) {
  bytes_ = bytes;
  require_memory("buffer", bytes, available_memory_bytes());
  anonymous_ = std::make_unique<AnonymousMemory>(bytes);
  address_ = static_cast<uint8_t*>(anonymous_->address());
}

std::shared_ptr<Buffer> Buffer::map(std::shared_ptr<File> file) {
  if (file->bytes() == 0) fail(CKPT_ERR_INVALID, "map %s: the file is empty", file->path().c_str());
  if (!file->has_lease()) fail(CKPT_ERR_STATE, "map %s: it holds no lease", file->path().c_str());
  const auto reader = file->enter();  // the lease stays while the pages are populated and pinned
  if (reader == nullptr) file->require_lease();
  std::shared_ptr<Buffer> buffer(new Buffer);
  void* address = mmap(nullptr, file->bytes(), PROT_READ, MAP_SHARED, file->fd(), 0);
  if (address == MAP_FAILED)
    fail_errno(errno == ENOMEM ? CKPT_ERR_MEMORY : CKPT_ERR_IO, errno, "mmap %s",
               file->path().c_str());
  buffer->bytes_ = file->bytes();
  buffer->file_ = std::move(file);
  buffer->address_ = static_cast<uint8_t*>(address);
  buffer->populate_and_pin();
  return buffer;
}

void Buffer::populate_and_pin() {
  const bool read_only = file_ != nullptr;
  const PinPlan plan = backend::pin_plan(bytes_, read_only);
  pin_piece_bytes_ = plan.piece_bytes == 0 ? bytes_ : plan.piece_bytes;
  if (read_only) {
    // A mapping is populated for the device only: the processor reads the file instead
    // (File::read_leased).
    if (!plan.needed) return;
    threads_for(*file_).run(bytes_, [&](uint32_t threads) { pin(threads, true); });
    return;
  }
  threads_for(shared_ != nullptr).run(bytes_, [&](uint32_t threads) {
    populate(address_, bytes_, true, threads);
  });
  if (plan.needed) pin(1, false);
}

// In pieces, several at once; those of a mapping are populated too.
void Buffer::pin(uint32_t threads, bool read_only) {
  const uint64_t pieces = (bytes_ + pin_piece_bytes_ - 1) / pin_piece_bytes_;
  std::vector<std::atomic<bool>> pinned(pieces);
  const auto piece_bytes = [&](uint64_t piece) {
    return std::min(pin_piece_bytes_, bytes_ - piece * pin_piece_bytes_);
  };
  try {
    parallel_for(pieces, threads, [&](uint64_t piece) {
      uint8_t* begin = address_ + piece * pin_piece_bytes_;
      if (read_only) populate(begin, piece_bytes(piece), false, 1);
      backend::pin_host(begin, piece_bytes(piece), read_only);
      pinned[piece] = true;
    });
  } catch (...) {
    for (uint64_t piece = 0; piece < pieces; piece++) {
      if (pinned[piece]) backend::unpin_host(address_ + piece * pin_piece_bytes_);
    }
    throw;
  }
  pinned_pieces_ = pieces;
}

Buffer::~Buffer() {
  for (uint64_t piece = 0; piece < pinned_pieces_; piece++)
    backend::unpin_host(address_ + piece * pin_piece_bytes_);
  if (file_ != nullptr && address_ != nullptr) munmap(address_, bytes_);
}

std::string Buffer::shared_path() const {
  if (shared_ == nullptr) fail(CKPT_ERR_STATE, "the buffer is not shared memory");
  return shared_->path();
}

void Buffer::copy_out(uint64_t offset, uint64_t bytes, void* to) {
  if (file_ != nullptr) {
    file_->read_leased(offset, bytes, to);
  } else {
    memcpy(to, address_ + offset, bytes);
  }
}

void Buffer::sha256(uint64_t offset, uint64_t bytes, uint8_t* digest) {
  Sha256 hash;
  if (file_ == nullptr) {
    hash.update(address_ + offset, bytes);
  } else {
    std::vector<uint8_t> chunk(std::min(bytes, kHashChunkBytes));
    for (uint64_t done = 0; done < bytes;) {
      const uint64_t count = std::min<uint64_t>(chunk.size(), bytes - done);
      file_->read_leased(offset + done, count, chunk.data());
      hash.update(chunk.data(), count);
      done += count;
    }
  }
  hash.finish(digest);
}

}  // namespace ckpt
