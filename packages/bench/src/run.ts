import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CkptError } from '@ckpt/core'
import { type Library, type LibraryOptions, openLibrary, selectDevices } from '@ckpt/cuda'
import { type Bench, sizesOf } from './bench.ts'
import { BENCHES } from './benches.ts'
import { type BenchDocument, documentOf, headerOf } from './document.ts'
import { type BenchOptions, parseOptions, UsageError, USAGE } from './options.ts'
import type { Row } from './row.ts'
import { tableHead, tableRow, verdict } from './table.ts'

const EXIT = { ok: 0, wrong: 1, usage: 2 } as const

/** What a run needs of its process. */
export interface Surroundings {
  /** To stdout, completely. */
  print(text: string): Promise<void>
  /** To stderr. */
  complain(text: string): void
  open(options: LibraryOptions): Library
  /** Ends the run after the present row. */
  readonly signal: AbortSignal
}

export const ON_PROCESS: Omit<Surroundings, 'signal'> = {
  print: async (text) => {
    await Bun.write(Bun.stdout, `${text}\n`)
  },
  complain: (text) => {
    process.stderr.write(`${text}\n`)
  },
  open: openLibrary,
}

/** Runs the benches and returns the exit status: 0 when nothing was wrong, 1, or 2 for a wrong option. */
export async function runBenches(
  args: readonly string[],
  surroundings: Surroundings,
  benches: readonly Bench[] = BENCHES,
): Promise<number> {
  try {
    const options = parseOptions(args)
    if (options.help) {
      await surroundings.print(USAGE.trimEnd())
      return EXIT.ok
    }
    return (await benchAll(options, surroundings, benches)).ok ? EXIT.ok : EXIT.wrong
  } catch (error) {
    if (!(error instanceof UsageError || error instanceof CkptError)) throw error
    surroundings.complain(`bench: ${error.message}`)
    return error instanceof UsageError || error.code === 'bad_request' ? EXIT.usage : EXIT.wrong
  }
}

async function benchAll(
  options: BenchOptions,
  surroundings: Surroundings,
  benches: readonly Bench[],
): Promise<BenchDocument> {
  const selection = selectDevices(options.devices, null)
  const library = surroundings.open(selection.library)
  const header = headerOf(selection, library, options.args)
  const rows: Row[] = []
  const notes: string[] = []
  let thrown: unknown = null
  if (!options.json) await surroundings.print(tableHead(header))
  const beginMs = performance.now()
  try {
    for await (const row of rowsOf(options, surroundings, benches, notes)) {
      rows.push(row)
      if (!options.json) await surroundings.print(tableRow(row))
      // runs may leave the event loop no turn of its own, and a signal needs one
      await Bun.sleep(1)
      surroundings.signal.throwIfAborted()
    }
  } catch (error) {
    thrown = error
  }
  const seconds = (performance.now() - beginMs) / 1000
  const document = documentOf(header, rows, notes, library.liveObjects(), seconds, thrown)
  const text = options.json ? JSON.stringify(document, null, 2) : verdict(document)
  await surroundings.print(text)
  return document
}

/** Every bench in a directory of its own, which is gone afterwards. */
async function* rowsOf(
  options: BenchOptions,
  { open }: Surroundings,
  benches: readonly Bench[],
  notes: string[],
): AsyncGenerator<Row> {
  const note = (text: string) => void notes.push(text)
  const { devices, models, python, wheels, trace, only } = options
  for (const bench of benches) {
    if (!only.includes(bench.name)) continue
    // Unix sockets lie below, and their paths have a limit of 107 bytes
    const dir = mkdtempSync(join(tmpdir(), 'ckpt-bench-'))
    try {
      const sizes = sizesOf(bench, options.sizes)
      yield* bench.rows({ devices, sizes, models, python, wheels, trace, dir, note, open })
    } finally {
      rmSync(dir, { recursive: true, force: true })
    }
  }
}
