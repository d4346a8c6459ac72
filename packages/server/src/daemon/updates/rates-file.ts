import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { BYTES_PER_SECOND_MAX, BYTES_PER_SECOND_MIN } from '@ckpt/core'
import { type } from 'arktype'
import { log } from '../log.ts'
import { removeStaged, replaceFile } from './replace-file.ts'

const FILE = 'rates.json'
/** Ten times what a full one takes. */
const FILE_BYTES_MAX = 2 ** 20
/** Entries of each kind that are remembered: the host library's devices get new names with every boot, an engine with every port. */
export const ENTRIES_MAX = 64
/** What the last updates told counts by its median: two of them may have been disturbed as much as they like. */
export const LEARNT_MAX = 5

const BytesPerSecond = type(`${BYTES_PER_SECOND_MIN} <= number <= ${BYTES_PER_SECOND_MAX}`)

/** A device of one native library: what the host library's devices are called is no GPU's name. */
const DeviceRates = type({
  '+': 'reject',
  uuid: 'string',
  library: "'host' | 'cuda'",
  h2d_bytes_per_second: BytesPerSecond,
})
export type DeviceRates = typeof DeviceRates.infer

/** A broadcast within one group of ranks, and what the last updates made of it. */
const BroadcastRates = type({
  '+': 'reject',
  /** Of each rank, in their order. */
  uuids: 'string[]',
  library: "'host' | 'cuda'",
  /** Absent: by copies. */
  'by?': "'nccl'",
  bytes_per_second: BytesPerSecond.array().atMostLength(LEARNT_MAX),
})
export type BroadcastRates = typeof BroadcastRates.infer

const Seconds = type('0 <= number <= 10')

/** An engine, and what the last updates told of it. */
const LearntEngine = type({
  '+': 'reject',
  key: 'string',
  learnt: type({
    '+': 'reject',
    bucket_s: Seconds,
    tensor_s: Seconds,
    reload_bytes_per_second: 'number > 0',
  })
    .array()
    .atMostLength(LEARNT_MAX),
})
export type LearntEngine = typeof LearntEngine.infer

/** The entry that was written last is the last one of its list. */
export const RatesDocument = type({
  '+': 'reject',
  format: '1',
  devices: DeviceRates.array().atMostLength(ENTRIES_MAX),
  broadcasts: BroadcastRates.array().atMostLength(ENTRIES_MAX),
  engines: LearntEngine.array().atMostLength(ENTRIES_MAX),
})
export type RatesDocument = typeof RatesDocument.infer

export const NO_RATES: RatesDocument = { format: 1, devices: [], broadcasts: [], engines: [] }

/**
 * What a daemon has found out about its devices and engines, in `STATE_DIR/rates.json`. Losing it costs a measurement, so nothing
 * about it is an error.
 */
export class RatesFile {
  readonly #path: string
  #writing: Promise<void> = Promise.resolve()

  constructor(stateDir: string) {
    this.#path = join(stateDir, FILE)
  }

  /** Of the one daemon of the directory: what those before it had begun to write is removed. */
  static async open(stateDir: string): Promise<RatesFile> {
    const file = new RatesFile(stateDir)
    await removeStaged(file.#path)
    return file
  }

  /** Nothing, where there is no file or not one of ours. */
  async read(): Promise<RatesDocument> {
    let value: unknown
    try {
      value = JSON.parse(await readText(this.#path))
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException
      if (code !== 'ENOENT') this.#ignored(message)
      return NO_RATES
    }
    const document = RatesDocument(value)
    if (!(document instanceof type.errors)) return document
    this.#ignored(document.summary.replaceAll('\n', '; '))
    return NO_RATES
  }

  #ignored(reason: string): void {
    log.warn('{path} is ignored, the devices are measured again: {reason}', {
      path: this.#path,
      reason,
    })
  }

  /** Resolves also when it could not be written. The document is taken as it is now. */
  write(document: RatesDocument): Promise<void> {
    const text = `${JSON.stringify(document, null, 2)}\n`
    this.#writing = this.#writing
      .then(() => replaceFile(this.#path, text))
      .catch((error: Error) => {
        log.warn('{path} was not written: {reason}', { path: this.#path, reason: error.message })
      })
    return this.#writing
  }

  /** Until everything is written. */
  async close(): Promise<void> {
    await this.#writing
  }
}

/** Does not wait for a pipe's writer. */
async function readText(path: string): Promise<string> {
  await using file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  const stat = await file.stat()
  const { size } = stat
  if (!stat.isFile()) throw new Error('it is no regular file')
  if (size > FILE_BYTES_MAX)
    throw new Error(`it has ${size} bytes, at most ${FILE_BYTES_MAX} are read`)
  return await file.readFile('utf8')
}
