/** The rules of the code base that a machine can check: types, lint (function length, what core may import), format. */
import { expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { Glob } from 'bun'

const ROOT = join(import.meta.dir, '..')

async function run(...command: string[]): Promise<{ status: number; output: string }> {
  const child = Bun.spawn(command, { cwd: ROOT, stdout: 'pipe', stderr: 'pipe' })
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ])
  return { status: await child.exited, output: out + err }
}

const bin = (name: string) => join(ROOT, 'node_modules', '.bin', name)

test('the types hold', async () => {
  expect(await run(bin('tsc'), '-p', 'tsconfig.json')).toEqual({ status: 0, output: '' })
}, 120_000)

test('oxlint finds nothing', async () => {
  const { status, output } = await run(bin('oxlint'))
  expect({ status, output: status === 0 ? '' : output }).toEqual({ status: 0, output: '' })
}, 60_000)

/** What could bring the contents of a checkpoint into JavaScript. */
const READS = /\b(fileRead|readSync|readFile\w*|createReadStream|toArrayBuffer|Bun\.(file|mmap))\b/
/** The one place that may: it reads headers and indexes. */
const READS_HEADERS = 'memory/source-files.ts'

test('nothing that holds or moves weights can read them into JavaScript, but where headers are read', async () => {
  const daemon = join(ROOT, 'packages/server/src/daemon')
  const files = [...new Glob('{memory,registry,rank}/*.ts').scanSync(daemon)]
  const sources = files.filter((file) => !file.endsWith('.test.ts'))
  expect(sources.length).toBeGreaterThan(20)
  const reading: string[] = []
  for (const file of sources) {
    if (READS.test(await Bun.file(join(daemon, file)).text())) reading.push(file)
  }
  expect(reading).toEqual([READS_HEADERS])
})

/** Where threads begin that are waited for when a daemon or the reference engine starts. */
const THREADS = ['daemon/memory/worker.ts', 'engines/reference/rank-worker.ts']
/** Its index loads the schemas, which takes most of a second. */
const CORE = '@ckpt/core'

/** The modules that a module loads, itself and those of other packages among them; @returns who loads {@link CORE} itself */
function loadersOfCore(entry: string): string[] {
  const transpiler = new Bun.Transpiler({ loader: 'ts' })
  const seen = new Set([entry])
  const loading: string[] = []
  for (const file of seen) {
    const imported = transpiler.scanImports(readFileSync(file, 'utf8'))
    for (const { path } of imported) {
      if (path === CORE) loading.push(file)
      else if (path.startsWith('.') || path.startsWith('@ckpt/'))
        seen.add(Bun.resolveSync(path, dirname(file)))
    }
  }
  expect(seen.size).toBeGreaterThan(10)
  return loading
}

test.each(THREADS)('the thread of %s does not load the schemas', (entry) => {
  expect(loadersOfCore(join(ROOT, 'packages/server/src', entry))).toEqual([])
})

test('every file is formatted', async () => {
  const { status, output } = await run(bin('biome'), 'check', '.')
  expect({ status, output: status === 0 ? '' : output }).toEqual({ status: 0, output: '' })
}, 60_000)
