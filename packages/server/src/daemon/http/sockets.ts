import { existsSync, lstatSync, mkdirSync, unlinkSync } from 'node:fs'
import { dirname } from 'node:path'
import { CkptError } from '@ckpt/core'

/**
 * Makes a path free for a Unix socket: creates its directory (0700) when it is missing and removes the socket that a dead
 * daemon left. `privateDir`: the directory must be ours alone, as below /tmp where anyone may have made it first.
 *
 * @throws CkptError `bad_request` when something lives there
 */
export async function freeSocketPath(path: string, privateDir: boolean): Promise<void> {
  const dir = dirname(path)
  if (!existsSync(dir)) mkdirSync(dir, { recursive: true, mode: 0o700 })
  if (privateDir) checkPrivateDir(dir)
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (found === undefined) return
  if (!found.isSocket()) throw refuse(`${path} is there already and is not a socket`)
  if (await answers(path)) throw refuse(`another daemon listens at ${path}`)
  unlinkSync(path)
}

/** Creates a directory that only this user can enter, or checks that it is one. */
export function makePrivateDir(dir: string): void {
  mkdirSync(dir, { recursive: true, mode: 0o700 })
  checkPrivateDir(dir)
}

function checkPrivateDir(dir: string): void {
  const found = lstatSync(dir)
  const own = found.isDirectory() && found.uid === process.getuid?.()
  if (own && (found.mode & 0o077) === 0) return
  throw refuse(`${dir} must be a directory of this user that nobody else can enter (mode 0700)`)
}

/** A connection is refused where the process that bound the socket is gone. */
async function answers(path: string): Promise<boolean> {
  try {
    const socket = await Bun.connect({ unix: path, socket: { data() {} } })
    socket.end()
    return true
  } catch {
    return false
  }
}

function refuse(message: string): CkptError {
  return new CkptError('bad_request', message)
}
