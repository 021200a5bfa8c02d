// A foreign writer, and the judge of its copies: RocksDB of the system's librocksdb (Debian: 7.8), not of this crate.
//
//   history write DIR [sst-file-manager|pipelined|two-write-queues|manual-wal-flush|wal-in-manifest]   until it is killed
//   history judge COPY          prints the last step of each thread, or what is wrong
//
// Step s of thread t is one batch: w:t:s is written and w:t:(s-400) deleted; h:t:(s%40) is overwritten; d:t:s is written and
// d:t:(s-20) deleted. Each value has the step, the steps of the others that were committed before, and a checksum. What
// was committed is told in DIR/progress, 8 bytes a thread.
// Build: g++ -O1 -std=c++17 history.cc -o history -lrocksdb -lpthread -lz
#include <fcntl.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/sst_file_manager.h>
#include <rocksdb/write_batch.h>
#include <unistd.h>
#include <zlib.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

using namespace rocksdb;

static const int kThreads = 3;
static const uint64_t kKept = 400, kHot = 40, kAlive = 20;
static std::atomic<uint64_t> committed[kThreads];

static std::string Key(char kind, int t, uint64_t s) {
  char text[40];
  snprintf(text, sizeof text, "%c:%d:%010llu", kind, t, (unsigned long long)s);
  return text;
}

static std::string Value(const std::string& key, uint64_t s, const uint64_t* seen) {
  std::string value((const char*)&s, 8);
  value.append((const char*)seen, 8 * kThreads);
  size_t padding = key[0] == 'w' ? (s % 97 == 96 ? 40000 : s * 7 % 300) : s % 50;
  for (size_t i = 0; i < padding; i++) value.push_back((char)((s * 2654435761u + i * 40503u) >> 7));
  uint32_t sum = crc32(crc32(0, (const Bytef*)key.data(), key.size()), (const Bytef*)value.data(), value.size());
  value.append((const char*)&sum, 4);
  return value;
}

static void Fail(const std::string& why) {
  printf("%s\n", why.c_str());
  fflush(stdout);
  _exit(1);
}

static Options Base() {
  Options options;
  options.create_if_missing = true;
  options.write_buffer_size = 64 * 1024;
  options.level0_file_num_compaction_trigger = 3;
  options.target_file_size_base = 32 * 1024;
  options.max_bytes_for_level_base = 128 * 1024;
  options.keep_log_file_num = 2;
  return options;
}

static int Write(const std::string& dir, const std::string& mode) {
  Options options = Base();
  if (mode == "sst-file-manager") {
    Status s;
    // Deletes go through the trash, slowly and in pieces: files with one name are truncated bit by bit.
    options.sst_file_manager.reset(
        NewSstFileManager(Env::Default(), nullptr, "", 400 * 1024, true, &s, 1.0, 16 * 1024));
    options.delete_obsolete_files_period_micros = 1000;
  }
  options.enable_pipelined_write = mode == "pipelined";
  options.two_write_queues = mode == "two-write-queues";
  options.manual_wal_flush = mode == "manual-wal-flush";
  options.track_and_verify_wals_in_manifest = mode == "wal-in-manifest";
  DB* db = nullptr;
  Status s = DB::Open(options, dir + "/0/rocksDb", &db);
  if (!s.ok()) Fail(s.ToString());
  int progress = open((dir + "/progress").c_str(), O_RDWR | O_CREAT, 0644);
  std::vector<std::thread> threads;
  std::atomic<uint64_t> unflushed[kThreads];
  for (auto& u : unflushed) u = 0;
  for (int t = 0; t < kThreads; t++)
    threads.emplace_back([&, t] {
      for (uint64_t step = 1;; step++) {
        uint64_t seen[kThreads];
        for (int o = 0; o < kThreads; o++) seen[o] = committed[o];
        WriteBatch batch;
        std::string w = Key('w', t, step), h = Key('h', t, step % kHot), d = Key('d', t, step);
        batch.Put(w, Value(w, step, seen));
        batch.Put(h, Value(h, step, seen));
        batch.Put(d, Value(d, step, seen));
        if (step > kKept) batch.Delete(Key('w', t, step - kKept));
        if (step > kAlive) batch.Delete(Key('d', t, step - kAlive));
        WriteOptions how;
        how.sync = mode == "wal-in-manifest" && step % 16 == 0;
        Status s = db->Write(how, &batch);
        if (!s.ok()) Fail(s.ToString());
        committed[t] = step;
        if (mode == "manual-wal-flush") {
          // Told once it has left the process.
          if (step % 8 == 0) {
            s = db->FlushWAL(false);
            if (!s.ok()) Fail(s.ToString());
            if (pwrite(progress, &step, 8, t * 8) != 8) Fail("progress");
          }
        } else if (pwrite(progress, &step, 8, t * 8) != 8) {
          Fail("progress");
        }
        usleep(200);
      }
    });
  for (auto& t : threads) t.join();
  return 0;
}

static int Judge(const std::string& dir) {
  Options options = Base();
  options.create_if_missing = false;
  options.disable_auto_compactions = true;
  options.paranoid_checks = true;
  options.track_and_verify_wals_in_manifest = true;
  DB* db = nullptr;
  Status s = DB::Open(options, dir, &db);
  if (!s.ok()) Fail("does not open: " + s.ToString());
  std::map<std::string, std::map<uint64_t, uint64_t>> found;
  uint64_t seen[kThreads] = {0, 0, 0};
  std::unique_ptr<Iterator> it(db->NewIterator(ReadOptions()));
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    std::string key = it->key().ToString(), value = it->value().ToString();
    uint64_t step, saw[kThreads];
    if (key.size() != 14 || value.size() < 36) Fail("strange entry " + key);
    memcpy(&step, value.data(), 8);
    memcpy(saw, value.data() + 8, sizeof saw);
    if (Value(key, step, saw) != value) Fail("wrong value of " + key);
    int own = key[2] - '0';
    for (int o = 0; o < kThreads; o++)
      if (o != own) seen[o] = std::max(seen[o], saw[o]);
    found[key.substr(0, 4)][std::stoull(key.substr(4))] = step;
  }
  if (!it->status().ok()) Fail("cannot be read: " + it->status().ToString());
  uint64_t last[kThreads];
  for (int t = 0; t < kThreads; t++) {
    auto prefix = [&](char kind) { return std::string(1, kind) + ":" + std::to_string(t) + ":"; };
    auto& w = found[prefix('w')];
    last[t] = w.empty() ? 0 : w.rbegin()->first;
    std::map<uint64_t, uint64_t> kept, alive, hot;
    for (uint64_t n = last[t] > kKept ? last[t] - kKept + 1 : 1; n <= last[t]; n++) kept[n] = n;
    for (uint64_t n = last[t] > kAlive ? last[t] - kAlive + 1 : 1; n <= last[t]; n++) alive[n] = n;
    for (uint64_t n = last[t] > kHot ? last[t] - kHot + 1 : 1; n <= last[t]; n++) hot[n % kHot] = n;
    if (w != kept) Fail("thread " + std::to_string(t) + " has a hole up to " + std::to_string(last[t]));
    if (found[prefix('d')] != alive) Fail("thread " + std::to_string(t) + ": the dead are back");
    if (found[prefix('h')] != hot) Fail("thread " + std::to_string(t) + ": overwritten keys are old");
  }
  for (int o = 0; o < kThreads; o++)
    if (seen[o] > last[o]) Fail("effect before cause: saw " + std::to_string(seen[o]) + " of " + std::to_string(last[o]));
  for (int t = 0; t < kThreads; t++) printf("%llu ", (unsigned long long)last[t]);
  printf("\n");
  return 0;
}

int main(int argc, char** argv) {
  std::string verb = argc > 2 ? argv[1] : "";
  if (verb == "write") return Write(argv[2], argc > 3 ? argv[3] : "");
  if (verb == "judge") return Judge(argv[2]);
  fprintf(stderr, "usage: history write DIR [MODE] | history judge COPY\n");
  return 2;
}
