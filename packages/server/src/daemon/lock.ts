import { dlopen } from 'bun:ffi'
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { processStart } from './updates/journal-processes.ts'

const LOCK_EX = 2
const LOCK_NB = 4
/** glibc, then musl. */
const LIBC_NAMES = [
  'libc.so.6',
  `libc.musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`,
]

/** A process, told from a later one with the same pid by when it started (clock ticks after boot). */
export interface LockHolder {
  readonly pid: number
  readonly start: number | null
}

/** Two daemons may not share a state directory: each would release the other's engines as leftovers. */
export interface StateLock {
  readonly path: string
  /** The last one that held it, when it ended without giving it back. */
  readonly left: LockHolder | null
  release(): void
}

/**
 * Takes `DIR/lock`. It is an flock, which the kernel drops with the process that holds it, so there is no stale lock; what the
 * file says is for the message, and for the next daemon, which clears what a killed one left.
 *
 * @throws CkptError `bad_request` naming the pid that holds it
 */
export async function lockStateDir(dir: string): Promise<StateLock> {
  const path = join(dir, 'lock')
  // 'a+' creates without truncating: the holder's pid must survive until we hold the lock
  const fd = openSync(path, 'a+', 0o600)
  const holder = readHolder(path)
  if (flock(fd, LOCK_EX | LOCK_NB) !== 0) {
    closeSync(fd)
    throw new CkptError(
      'bad_request',
      `another daemon${holder === null ? '' : ` (pid ${holder.pid})`} uses the state directory ${dir}`,
    )
  }
  const start = await processStart(process.pid)
  ftruncateSync(fd)
  writeSync(fd, `${process.pid} ${start ?? ''}\n`)
  let held = true
  return {
    path,
    left: holder,
    release() {
      if (!held) return
      held = false
      // the file stays: unlinking it would let a third process lock another inode of the same name
      ftruncateSync(fd)
      closeSync(fd)
    },
  }
}

function readHolder(path: string): LockHolder | null {
  const match = /^(\d+) (\d*)\n$/.exec(readFileSync(path, 'utf8'))
  if (match === null) return null
  return { pid: Number(match[1]), start: match[2] === '' ? null : Number(match[2]) }
}

let loaded: ((fd: number, operation: number) => number) | null = null

function flock(fd: number, operation: number): number {
  loaded ??= openFlock()
  return loaded(fd, operation)
}

function openFlock(): (fd: number, operation: number) => number {
  const reasons: string[] = []
  for (const name of LIBC_NAMES) {
    try {
      return dlopen(name, { flock: { args: ['i32', 'i32'], returns: 'i32' } }).symbols.flock
    } catch (error) {
      reasons.push(error instanceof Error ? error.message : String(error))
    }
  }
  throw new CkptError('native_missing', `no C library for flock: ${reasons.join('; ')}`)
}
