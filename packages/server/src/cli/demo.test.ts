import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ErrorBody } from '@ckpt/core'
import { CKPT, run, type Scratch, scratch } from '../../../../test/support/process.ts'
import { writeCheckpoint } from './write-checkpoint.ts'

setDefaultTimeout(90_000)

let dir: Scratch
beforeAll(() => {
  dir = scratch()
  mkdirSync(join(dir.path, 'tmp'))
})
afterAll(() => dir.remove())

/** TMPDIR is the test's own, so that what is left behind shows. */
function demo(...args: string[]) {
  const temporary = join(dir.path, 'tmp')
  return run([...CKPT, 'demo', ...args], { TMPDIR: temporary })
}

const left = () => readdirSync(join(dir.path, 'tmp'))

/** Shared memory that nobody will ever remove: of processes that are gone. */
function orphans(): string[] {
  return readdirSync('/dev/shm').filter((name) => {
    const pid = name.match(/^ckpt-(\d+)-/)?.[1]
    return pid !== undefined && !existsSync(`/proc/${pid}`)
  })
}

test('two versions of a generated model, every byte verified, one document', async () => {
  const orphansBefore = orphans()
  const { status, stdout, stderr } = await demo('--json')
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  const document = JSON.parse(stdout)
  expect(document).toMatchObject({ ok: true, same_files: false, tensor_parallel_size: 2 })
  expect(document.versions).toHaveLength(2)
  for (const { report, verified_tensors, verified_bytes } of document.versions) {
    expect(report).toMatchObject({ tensors: 111, bytes: 249_337_344, ranks: 2 })
    expect(verified_tensors).toBe(222)
    // every dimension 0 is even: two halves are the whole
    expect(verified_bytes).toBe(249_337_344)
  }
  expect(left()).toEqual([])
  expect(orphans().filter((name) => !orphansBefore.includes(name))).toEqual([])
})

test("a user's model is only read; its second version is a changed copy", async () => {
  const model = join(dir.path, 'model')
  mkdirSync(model)
  const tensors = [3, 4, 7].map((rows) => ({ name: `w.${rows}`, dtype: 'F32', shape: [rows, 64] }))
  const { files } = await writeCheckpoint(model, tensors, 1, 1_000)
  const before = files.map((file) => readFileSync(file).toHex())
  const { status, stdout, stderr } = await demo('--checkpoint-path', model)
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' })
  expect(stdout).toContain('then a copy with every byte changed')
  expect(stdout).toMatch(/stage +seconds +GB\/s +buckets +ring +mode/)
  // 4 rows are halved, 3 and 7 are whole on both ranks
  expect(stdout.match(/verified: 6 tensors, 6\.1 KB/g)).toHaveLength(2)
  expect(files.map((file) => readFileSync(file).toHex())).toEqual(before)
  expect(left()).toEqual([])
})

test('a model that cannot be loaded is an error, and every process ends', async () => {
  const { status, stdout } = await demo('--checkpoint-path', join(dir.path, 'none'), '--json')
  expect(JSON.parse(stdout).error.code).toBe('file_not_found')
  expect(status).toBe(1)
  expect(left()).toEqual([])
})

test('Ctrl-C ends it with everything that it started', async () => {
  const temporary = join(dir.path, 'tmp')
  const env = { ...process.env, TMPDIR: temporary }
  const child = Bun.spawn([...CKPT, 'demo', '--json'], { env, stdout: 'pipe', stderr: 'pipe' })
  const deadlineMs = performance.now() + 30_000
  while (!left().some((name) => existsSync(join(temporary, name, 'ckpt.sock')))) {
    if (performance.now() > deadlineMs) throw new Error('the daemon did not start')
    await Bun.sleep(10)
  }
  expect(commandsNaming(temporary)).not.toEqual([])
  child.kill('SIGINT')
  const { error } = (await new Response(child.stdout).json()) as ErrorBody
  expect(error.code).toBe('aborted')
  expect(await child.exited).toBe(1)
  expect(commandsNaming(temporary)).toEqual([])
  expect(left()).toEqual([])
})

/** Processes whose command line names a path: the demo's daemon has its socket there. */
function commandsNaming(path: string): string[] {
  return readdirSync('/proc')
    .filter((pid) => /^\d+$/.test(pid))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      } catch {
        // it has ended since
        return ''
      }
    })
    .filter((command) => command.includes(path))
}
