// Files into buffers: pread by several threads, pieces in order. Files that were opened for it are
// read past the page cache.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "buffer.h"
#include "completion.h"
#include "file.h"
#include "read-threads.h"

namespace ckpt {

class Read : public Object {
 public:
  static constexpr Kind kKind = Kind::read;

  struct Piece {
    std::shared_ptr<File> file;
    std::shared_ptr<Buffer> buffer;
    uint64_t file_offset;
    uint64_t buffer_offset;
    uint64_t bytes;
  };

  // Between 1 <= threads_least <= threads_most threads, see ReadThreads. `signal` may be null.
  static std::shared_ptr<Read> start(std::vector<Piece> pieces, uint32_t threads_least,
                                     uint32_t threads_most, std::shared_ptr<Signal> signal);
  ~Read() override;

  void query(ckpt_read_progress& progress);
  std::string error_text() const { return completion_.text(); }
  void wait(Signal* signal, uint32_t timeout_ms);
  void notify(uint32_t pieces, std::shared_ptr<Signal> signal);
  void close() override;

 private:
  struct Waiter {
    uint32_t pieces;
    std::shared_ptr<Signal> signal;
  };

  struct Chunk {
    uint32_t piece;
    uint64_t offset;
    uint64_t bytes;
  };

  Read(std::vector<Piece> pieces, uint32_t threads_least, uint32_t threads_most,
       std::shared_ptr<Signal> signal);
  void work(uint32_t thread);
  bool next_chunk(uint32_t thread, Chunk& chunk);
  bool exhausted_locked();
  void chunk_done(const Chunk& chunk);
  void chunk_failed(const Chunk& chunk, ckpt_status status, const std::string& text);
  void thread_leaves();
  void advance_prefix_locked();
  std::vector<Waiter> take_served_locked();
  void pace(uint64_t bytes);

  std::vector<Piece> pieces_;  // let go of when the read has ended: it holds files open
  const uint32_t pieces_total_;
  std::shared_ptr<Signal> signal_;
  const uint64_t bytes_total_;

  std::mutex mutex_;
  std::condition_variable parked_;  // threads that may not work now
  std::vector<uint64_t> bytes_left_;  // of each piece
  uint32_t next_piece_ = 0;
  uint64_t next_offset_ = 0;
  uint64_t bytes_done_ = 0;
  uint32_t pieces_prefix_ = 0;
  std::vector<Waiter> waiters_;
  const uint64_t rate_;  // 0: as fast as it goes
  const uint64_t chunk_bytes_;
  std::chrono::steady_clock::time_point paced_until_ = std::chrono::steady_clock::now();
  ReadThreads working_;
  uint32_t threads_inside_ = 0;
  uint32_t failed_piece_ = 0;
  ckpt_status failure_ = CKPT_OK;
  std::string failure_text_;

  Completion completion_;
  std::vector<std::thread> threads_;
};

}  // namespace ckpt
