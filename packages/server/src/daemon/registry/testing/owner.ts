/** `owner.ts FILE DIR`: holds a file in place, prints what others need to read it, and lives until it is ended. */
import { serialize } from 'node:v8'
import { createRegistry } from '../held.ts'
import { daemonOptions } from './fixture.ts'

const [file, dir] = process.argv.slice(2) as [string, string]
const registry = await createRegistry(daemonOptions(dir))
await registry.register('m', { files: [file], in_place: true }, null)
const remotes = await registry.lease('m').serve(new Set([0]))
console.log(`offers ${serialize(remotes).toString('base64')}.`)
