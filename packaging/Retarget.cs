using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using Mono.Cecil;

/// <summary>
/// `Retarget IN NETSTANDARD OUT`: makes an assembly that was compiled against a runtime's own assemblies refer to netstandard
/// alone, as a library in a package must. NETSTANDARD is that runtime's netstandard.dll, which lists the types that the
/// standard has; an assembly that uses any other is refused.
/// </summary>
internal static class Retarget
{
    private static int Main(string[] arguments)
    {
        if (arguments.Length != 3)
        {
            Console.Error.WriteLine("usage: Retarget IN NETSTANDARD OUT");
            return 2;
        }
        // Writing looks up what enumerations are, through the standard's own list.
        var resolver = new DefaultAssemblyResolver();
        resolver.AddSearchDirectory(Path.GetDirectoryName(Path.GetFullPath(arguments[1])));
        var reader = new ReaderParameters { AssemblyResolver = resolver };
        using (var module = ModuleDefinition.ReadModule(new MemoryStream(File.ReadAllBytes(arguments[0])), reader))
        using (var facade = ModuleDefinition.ReadModule(arguments[1]))
        {
            var standard = facade.Assembly.Name;
            var reference = new AssemblyNameReference(standard.Name, standard.Version) { PublicKeyToken = standard.PublicKeyToken };
            var known = new HashSet<string>(facade.ExportedTypes.Select(type => type.FullName));
            module.AssemblyReferences.Add(reference);
            foreach (var type in module.GetTypeReferences().Where(type => type.DeclaringType == null))
            {
                if (!known.Contains(type.FullName))
                {
                    Console.Error.WriteLine(type.FullName + " is not in " + standard.Name + " " + standard.Version);
                    return 1;
                }
                type.Scope = reference;
            }
            foreach (var other in module.AssemblyReferences.Where(one => one != reference).ToArray()) module.AssemblyReferences.Remove(other);
            module.Write(arguments[2]);
        }
        // What was written is what counts.
        using (var written = ModuleDefinition.ReadModule(arguments[2]))
        {
            var names = string.Join(", ", written.AssemblyReferences.Select(one => one.FullName));
            Console.WriteLine(written.Name + " refers to " + names);
            return written.AssemblyReferences.Count == 1 && written.AssemblyReferences[0].Name == "netstandard" ? 0 : 1;
        }
    }
}
