import { expect, test } from 'bun:test'
import { readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { countDown } from './ring-counter.ts'

test('one counter is counted down, and nothing else in the file', () => {
  const file = `/ckpt-test-counter-${process.pid}`
  const path = `/dev/shm${file}`
  // the header's first word counts whoever has the file open
  const words = new BigInt64Array(8 + 5).fill(1n)
  writeFileSync(path, words)
  try {
    countDown({ file, index: 3 })
    countDown({ file, index: 5 })
    words[8 + 3] = 0n
    const now = readFileSync(path)
    expect(new BigInt64Array(now.buffer, now.byteOffset, words.length)).toEqual(words)
    expect(statSync(path).size).toBe(words.byteLength)
  } finally {
    rmSync(path)
  }
})

test('an owner that has gone is not told', () => {
  countDown({ file: '/ckpt-test-there-is-no-such-file', index: 0 })
})
