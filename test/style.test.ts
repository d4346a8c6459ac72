/** The rules of the code base that a machine can check: types, lint (function length, what core may import), format. */
import { expect, test } from 'bun:test'
import { join } from 'node:path'

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

test('every file is formatted', async () => {
  const { status, output } = await run(bin('biome'), 'check', '.')
  expect({ status, output: status === 0 ? '' : output }).toEqual({ status: 0, output: '' })
}, 60_000)
