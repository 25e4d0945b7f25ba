module github.com/kronsae/kronsae/bindings/go

go 1.24
