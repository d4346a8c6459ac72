import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { openLibc } from './libc.ts'

const LOCK_EX = 2
const LOCK_NB = 4

/** Two daemons may not share a state directory: each would release the other's engines as leftovers. */
export interface StateLock {
  readonly path: string
  release(): void
}

/**
 * Takes `DIR/lock`. It is an flock, which the kernel drops with the process that holds it, so there is no stale lock; the
 * pid in the file is for the message.
 *
 * @throws CkptError `bad_request` naming the pid that holds it
 */
export function lockStateDir(dir: string): StateLock {
  const path = join(dir, 'lock')
  // 'a+' creates without truncating: the holder's pid must survive until we hold the lock
  const fd = openSync(path, 'a+', 0o600)
  if (flock(fd, LOCK_EX | LOCK_NB) !== 0) {
    closeSync(fd)
    const pid = readFileSync(path, 'utf8').trim()
    throw new CkptError(
      'bad_request',
      `another daemon${pid === '' ? '' : ` (pid ${pid})`} uses the state directory ${dir}`,
    )
  }
  ftruncateSync(fd)
  writeSync(fd, `${process.pid}\n`)
  let held = true
  return {
    path,
    release() {
      if (!held) return
      held = false
      // the file stays: unlinking it would let a third process lock another inode of the same name
      ftruncateSync(fd)
      closeSync(fd)
    },
  }
}

let loaded: ((fd: number, operation: number) => number) | null = null

function flock(fd: number, operation: number): number {
  loaded ??= openLibc({ flock: { args: ['i32', 'i32'], returns: 'i32' } }).flock
  return loaded(fd, operation)
}
