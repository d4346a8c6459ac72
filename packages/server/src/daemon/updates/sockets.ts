import { randomBytes } from 'node:crypto'
import { chmod, mkdir, mkdtemp, readdir, rm, unlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/** sun_path of Linux holds 108 bytes with the terminating zero. */
const SOCKET_PATH_BYTES_MAX = 107
const NAME = /^rank-\d+-[0-9a-f]{16}\.sock$/
/** Longest name that {@link EngineSockets.address} makes. */
const NAME_BYTES_MAX = 'rank-65535-0123456789abcdef.sock'.length

/**
 * The private directory of the engines' sockets. Names are random: a well-known one lets any local process put itself in our
 * place and send pickles to the engine.
 */
export class EngineSockets {
  readonly dir: string
  readonly #ours: boolean

  private constructor(dir: string, ours: boolean) {
    this.dir = dir
    this.#ours = ours
  }

  /** `STATE_DIR/engines`, or a directory of its own where that path is too long for a socket. */
  static async open(stateDir: string): Promise<EngineSockets> {
    const dir = join(stateDir, 'engines')
    if (Buffer.byteLength(dir) + 1 + NAME_BYTES_MAX <= SOCKET_PATH_BYTES_MAX) {
      await mkdir(dir, { recursive: true, mode: 0o700 })
      await chmod(dir, 0o700)
      return new EngineSockets(dir, false)
    }
    return new EngineSockets(await mkdtemp(join(tmpdir(), 'ckpt-')), true)
  }

  /** A new address for the worker of this rank. */
  address(rank: number): string {
    return `ipc://${this.dir}/${socketName(rank)}`
  }

  async close(): Promise<void> {
    await removeSockets(this.dir)
    if (this.#ours) await rm(this.dir, { recursive: true, force: true })
  }
}

/** A random one. */
export function socketName(rank: number): string {
  return `rank-${rank}-${randomBytes(8).toString('hex')}.sock`
}

/** Removes the engine sockets that lie in a directory, and nothing else. */
export async function removeSockets(dir: string): Promise<void> {
  for (const name of await readdir(dir).catch(() => [])) {
    if (NAME.test(name)) await unlink(join(dir, name)).catch(() => {})
  }
}
